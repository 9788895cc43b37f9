"""Sessions: an agent harness speaks chat messages, the session keeps every token exactly as it was produced."""

from miles_lite.session.client import SessionClient
from miles_lite.session.samples.sample_file import decode_samples, encode_samples

__all__ = ["SessionClient", "decode_samples", "encode_samples"]
