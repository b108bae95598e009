"""The tables of a report: a function or an entry each, and the catalogue that lists them."""
