"""The ROS 2 side: messages in, messages out, parameters, threads, diagnostics. Everything else is geopurify_core's."""
