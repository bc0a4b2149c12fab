"""The command `paired-index`."""
