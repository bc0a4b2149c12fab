"""Which embedding files there should be, which of them are here, and how the rest is had."""
