"""One script per table or figure; README.md lists them."""
