"""The tables of a report: a function each, and the catalogue that lists them."""
