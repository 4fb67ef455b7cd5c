"""The worst direction: searched for, climbed to, or bounded; and the certificate that follows."""

from .certificate import Certificate
from .options import PricedGates, PricingOptions

__all__ = ["Certificate", "PricedGates", "PricingOptions"]
