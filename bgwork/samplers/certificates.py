"""What a certificate says: of the density, and in words."""

from __future__ import annotations

from torch import Tensor

from bgwork.records import Certificate, Cost, Density


def density_of(certificate: Certificate, sign: Tensor) -> Density:
    """How far log q can be relied upon.

    Args:
        certificate: of the map.
        sign: [N] of each sample's determinant; one that is zero or not finite has none, and then nothing can be said.
    """
    if certificate.clean:
        return Density.EXACT
    signed = certificate.degree_one and bool((sign.abs() == 1).all())
    return Density.SIGNED if signed else Density.UNCERTIFIED


def describe(certificate: Certificate, spent: Cost) -> str:
    """The certificate, and the work that it took beyond sampling, in words."""
    degree = "" if not certificate.n_degree else (
        f"; {certificate.n_degree} images of a far sphere stay {certificate.degree_margin:.1f} times as far out as any sample, "
        f"so that its degree is {'one, by all that was seen' if certificate.degree_one else 'not known to be one'}")
    back = certificate.n_round_trip - certificate.n_round_trip_failed
    return (
        f"{certificate.n_negative} of {certificate.n} samples with a determinant <= 0; round trip of {certificate.round_trip_of}: "
        f"{back} of {certificate.n_round_trip} returned, largest error {certificate.round_trip_error:.1e}, tolerance "
        f"{certificate.tolerance:.0e}{degree}; at {spent.network} network evaluations and {spent.jacobian} Jacobians beyond sampling's")
