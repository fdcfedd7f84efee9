"""The parts that all backends share: contracts, the Engine protocol, errors, arrays on a device."""
