"""Whole numbers of a few bits each, packed into bytes without a gap."""

import torch
from torch import Tensor
from torch.nn import functional


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integers 0 <= code < 2**bits, of any shape, into ceil(n * bits / 8) bytes, lowest bit first."""
    flat = codes.reshape(-1).to(torch.int64)
    padded = functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    shifts = torch.arange(8, device=codes.device) * bits
    # Codes do not overlap, so the sum of the shifted codes is their bitwise or: eight codes are `bits` bytes.
    words = (padded << shifts).sum(dim=1)
    in_bytes = (words[:, None] >> (torch.arange(bits, device=codes.device) * 8)) & 255
    return in_bytes.to(torch.uint8).reshape(-1)[: (flat.numel() * bits + 7) // 8].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`: `count` codes as uint8."""
    padded = functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits).to(torch.int64)
    words = (padded << (torch.arange(bits, device=packed.device) * 8)).sum(dim=1)
    shifts = torch.arange(8, device=packed.device) * bits
    codes = (words[:, None] >> shifts) & (2**bits - 1)
    return codes.to(torch.uint8).reshape(-1)[:count]
