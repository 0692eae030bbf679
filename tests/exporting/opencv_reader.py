"""Program for another Python with another OpenCV: run an ONNX file on an array and save the first output.

python opencv_reader.py MODEL.onnx INPUT.npy OUTPUT.npy
"""

import sys

import cv2
import numpy as np

model, source, target = sys.argv[1:]
network = cv2.dnn.readNetFromONNX(model)
network.setInput(np.load(source))
np.save(target, network.forward())
print(cv2.__version__)
