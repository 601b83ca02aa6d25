"""One module for each profile: its docstring is its help, `PROFILE` says what is measured of whom, and how."""
