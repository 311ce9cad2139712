"""Ready YAML files that a wheel has to carry (`demo.yaml`)."""
