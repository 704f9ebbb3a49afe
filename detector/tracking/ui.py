"""The MLflow UI of the store: `python -m detector ui [PORT]`."""

import argparse
import subprocess
import sys


def main() -> None:
    """Open the MLflow UI of the store on loopback, until Ctrl-C."""
    parser = argparse.ArgumentParser("python -m detector ui", description="Open the MLflow UI, until Ctrl-C.")
    parser.add_argument("port", metavar="PORT", type=int, nargs="?", default=5000, help="default: 5000")
    port = parser.parse_args().port
    from detector.tracking.store import connect, tracking_uri  # takes seconds

    connect()
    if tracking_uri().startswith("http"):
        print(f"The runs are on the server {tracking_uri()}: open it in a browser.")
        return
    subprocess.run([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(), "--port", str(port)])
