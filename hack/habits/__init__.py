"""How readable the code is: `python -m habits` judges it in `make check`,
`habits.figures` prints a table."""
