"""What can be paid in a currency: amounts in the books have all their digits, a payment has the currency's own."""

from decimal import ROUND_HALF_UP, Decimal

# Decimal places where they aren't two: ISO 4217, list one, "minor unit".
NONE_AT_ALL = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
THREE = "BHD IQD JOD KWD LYD OMR TND"
PLACES = {**dict.fromkeys(NONE_AT_ALL.split(), 0), **dict.fromkeys(THREE.split(), 3)}


def rounded(amount: Decimal, currency: str) -> str:
    """`payable`, for people: 1,234.50 EUR, −34 JPY."""
    return f"{payable(amount, currency):,} {currency}".replace("-", "−")


def payable(amount: Decimal, currency: str) -> Decimal:
    """An amount rounded, half up, to the smallest unit of its currency: 93.0194 EUR are 93.02, 33.71 JPY are 34."""
    return amount.quantize(Decimal(1).scaleb(-PLACES.get(currency, 2)), ROUND_HALF_UP) + 0  # which makes 0.00 of -0.00
