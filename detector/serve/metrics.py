"""What the service says of itself to Prometheus; no label holds anything that a client chose."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one service, in a registry of its own."""

    def __init__(self, waiting: Callable[[], int]):
        """`waiting`: crops in the queue of the network."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "detector_requests", "Requests answered, by route and status", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "detector_request_seconds", "From a request's headers to its answer", ["route"], registry=registry,
            buckets=SECONDS,
        )  # fmt: skip
        self.in_flight = Gauge("detector_requests_in_flight", "Requests being answered", registry=registry)
        self.images = Counter("detector_images", "Images taken in, by outcome", ["outcome"], registry=registry)
        self.faces = Counter("detector_faces", "Faces judged, by verdict", ["verdict"], registry=registry)
        self.batch = Histogram(
            "detector_batch_size", "Crops that went through the network together", registry=registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )  # fmt: skip
        Gauge("detector_queue_depth", "Crops waiting for the network", registry=registry).set_function(waiting)

    def text(self) -> bytes:
        """The exposition format, version 0.0.4."""
        return generate_latest(self._registry)
