"""What the service takes, holds and waits for at most.

Clients that are slow to send their headers or to read their answers are for the proxy in front of the service to limit:
Uvicorn has no time-out for them.
"""

from detector.images import FORMATS

MIB = 1 << 20

# Of one request
FILE_BYTES = 20 * MIB
REQUEST_BYTES = 64 * MIB  # all its files and what multipart puts around them
FILES = 16
PIXELS = 40_000_000  # of an image, read from its header before anything is decoded: 120 MB of RGB
FACES = 32  # of an image, the largest first
FORMATS = FORMATS

# Of all requests together
REQUESTS = 128  # taken and not yet answered
HELD_BYTES = 256 * MIB  # of uploads in memory
CROPS = 512  # waiting for the network
CONNECTIONS = 512  # open ones; Uvicorn answers 503 in plain text beyond it
IMAGES_AT_ONCE = 2  # decoded and searched for faces

# The network
BATCH = 16  # crops at a time
WAIT_SECONDS = 0.003  # for more of them, when there is nothing else to do

# Seconds
UPLOAD_SECONDS = 30  # from the headers of a request to the end of its body
ANSWER_SECONDS = 30  # from there to the answer
KEEP_ALIVE_SECONDS = 15
RETRY_SECONDS = 1  # in the header Retry-After of an answer 503
