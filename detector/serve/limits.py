"""What the service takes, holds and waits for at most: all of its limits, in one place."""

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
CONNECTIONS = 512
IMAGES_AT_ONCE = 2  # decoded and searched for faces

# The network
BATCH = 16  # crops at a time
WAIT_SECONDS = 0.003  # for more of them, when there is nothing else to do

# Seconds
HEADER_SECONDS = 10  # from the first byte of a request, or from connecting, to the end of its headers
UPLOAD_SECONDS = 30  # to the end of its body
ANSWER_SECONDS = 30  # from there to the answer
SEND_SECONDS = 30  # for a client to take what it was sent
LINGER_SECONDS = 5  # to go on sending what has been refused
KEEP_ALIVE_SECONDS = 15
NOTICE_SECONDS = 1  # after SIGTERM, in which new work is refused in words before new connections are
RETRY_SECONDS = 1  # stated to who is turned away
