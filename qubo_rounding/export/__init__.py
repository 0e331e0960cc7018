"""A rounded network in formats that others read: ONNX, safetensors of levels, encodings."""

from __future__ import annotations

from qubo_rounding.export.encodings import write_encodings
from qubo_rounding.export.levels import load_levels, save_levels
from qubo_rounding.export.onnx_file import write_onnx

__all__ = ["load_levels", "save_levels", "write_encodings", "write_onnx"]
