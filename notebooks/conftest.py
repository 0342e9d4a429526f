"""Which notebooks the tests run."""

#: fetches weights that the tests do not have: `make gallery` runs it
collect_ignore = ["08_real_networks.ipynb"]
