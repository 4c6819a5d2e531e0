"""What a machine does with a model: `twingpt bench` and `tune` here, `twingpt plan` for several machines."""
