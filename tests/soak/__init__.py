"""The soak: all features at once for as long as asked, kills included; it fails on loss and on growth."""
