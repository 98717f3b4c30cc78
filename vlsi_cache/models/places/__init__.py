"""Where a model's weights lie and how they compute: devices, processes, kernels, quantisation."""
