"""Attacks: small pure functions, and PGD composed from them. Every attack states its ball."""

from morel_core.attacks.autoattack import AutoAttack, AutoAttackPart, autoattack_checks
from morel_core.attacks.base import Attack, attack_mode
from morel_core.attacks.catalogue import at_radii, make_attacks, preset
from morel_core.attacks.pgd import PGD
from morel_core.attacks.sliced import in_slices
from morel_core.attacks.transfer import Transfer

__all__ = [
    "PGD",
    "Attack",
    "AutoAttack",
    "AutoAttackPart",
    "Transfer",
    "at_radii",
    "attack_mode",
    "autoattack_checks",
    "in_slices",
    "make_attacks",
    "preset",
]
