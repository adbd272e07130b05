"""Attacks: small pure functions, and PGD composed from them. Every attack states its ball."""

from morel_core.attacks.autoattack import AutoAttack
from morel_core.attacks.base import Attack, attack_mode
from morel_core.attacks.pgd import PGD

__all__ = ["PGD", "Attack", "AutoAttack", "attack_mode"]
