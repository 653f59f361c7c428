"""Documents of the user, of many kinds, as passages of a corpus."""
