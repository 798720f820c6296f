"""What several tests stand on: a data home of their own, layers with real statistics, tiny models."""

import os

from hypothesis import settings

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A busy machine is slow, not wrong.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
