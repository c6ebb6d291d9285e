"""bgwork: a Boltzmann generator workbench with exact likelihoods."""
