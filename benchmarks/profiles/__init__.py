"""One module for each profile: its docstring is its help, `arguments(parser)` adds its options, and
`run(options, folder)` measures with stores in that folder and returns a Report."""
