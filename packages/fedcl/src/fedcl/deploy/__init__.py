"""The same federation on real machines: a Flower app, certificates and keys, and a deployment on this one."""
