"""The paper on one device, with a forecast in minutes of the device at hand: `python -m common.reproduce`."""
