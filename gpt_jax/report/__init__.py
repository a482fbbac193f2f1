"""One page that shows runs and computes with their models, in a browser and without a network.

`page.py` puts the file together, `payload.py` says what it shows, `live.py` what it computes with.
The scripts beside them have no build step: each is inlined as it is.
"""
