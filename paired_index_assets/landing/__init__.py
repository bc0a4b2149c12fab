"""Which embedding files there should be, which of them are here, and their validated rows."""
