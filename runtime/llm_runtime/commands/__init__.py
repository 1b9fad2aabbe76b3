"""The command line's verbs beside `serve` and `fetch`: one module each, registered in `__main__`."""
