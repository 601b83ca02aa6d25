"""Credit: random lives of the two protocols' clients on a real gateway, and what each of them may hold."""
