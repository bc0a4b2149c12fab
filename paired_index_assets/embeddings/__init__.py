"""Where vectors come from: pictures and captions through an encoder, or features somebody computed already.

`sources` reads samples, `encoders` turns them into unit vectors, `run` writes row-aligned parts that resume, `features` takes over
existing matrices, and `sets` is the one reader of all of them.
"""
