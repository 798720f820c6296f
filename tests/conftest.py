"""What several tests stand on: a data home of their own, layers with real statistics, tiny models."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
