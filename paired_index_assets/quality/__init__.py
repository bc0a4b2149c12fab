"""How good an index is, on captions kept aside: the split, recall and its losses, intervals, stock peers, the report."""
