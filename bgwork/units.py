"""The only physical constants and conversions in bgwork. OpenMM's units: nm, ps, kJ/mol, K."""

GAS_CONSTANT = 8.31446261815324e-3  # kJ/(mol K), CODATA 2018 (exact)
BOHR = 0.0529177210903  # nm, CODATA 2018
HARTREE = 2625.4996394798254  # kJ/mol, CODATA 2018


def kT(temperature: float) -> float:
    """Thermal energy R T.

    Args:
        temperature: in K.
    Returns:
        kJ/mol.
    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature} K")
    return GAS_CONSTANT * temperature
