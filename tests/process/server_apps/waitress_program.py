"""waitress on inherited listeners, as a program of one's own: what the profile `generic` serves."""

import os
import socket

import waitress
from wsgi_app import application

listeners = [socket.socket(fileno=3 + at) for at in range(int(os.environ["LISTEN_FDS"]))]
waitress.serve(application, sockets=listeners)
