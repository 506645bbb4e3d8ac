"""What describes the robot, its controller, its estimator and its errors; every field says where its value comes from."""
