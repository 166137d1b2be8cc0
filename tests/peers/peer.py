"""The far proxy of a tunnel, played by Python's `h2` over Python's `ssl`: independent of every line of the tunnel under test.

    peer.py serves CHAIN KEY ROOT PEER-IDENTITY PORT APPLICATION-PORT
    peer.py calls  CHAIN KEY ROOT PEER-IDENTITY PORT ADDRESS AUTHORITY

As `serves` it ends tunnels on PORT and carries each CONNECT to APPLICATION-PORT at loopback. As `calls` it opens a tunnel to ADDRESS at
port 15008 and carries through it whoever connects to PORT at loopback, each by a CONNECT to AUTHORITY. What happens is told line by line
on stdout, as JSON. On stdin it hears `keys` (change the keys of every tunnel, and ask the far side to change its own), `leave`
(GOAWAY behind all streams) and `refuse` (GOAWAY that leaves out the next CONNECT).
"""

import asyncio
import collections
import ctypes
import json
import socket
import ssl
import struct
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived, PingAckReceived, RequestReceived, ResponseReceived, StreamEnded, StreamReset,
    WindowUpdated,
)
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

STREAM_WINDOW = 1 << 20
CHUNK = 64 << 10

GoneAway = collections.namedtuple("GoneAway", ["error_code", "last_stream_id"])


def tell(event, **facts):
    print(json.dumps({"event": event, **facts}), flush=True)


def hang_up(writer):
    """Ends an application's connection by RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Keys:
    """Changes the keys of a TLS connection. Python has no call for it, so OpenSSL is asked directly: its `SSL *` is the member behind
    the one Python object in `PySSLSocket`."""

    def __init__(self):
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "libssl" in line}
        self.library = ctypes.CDLL(paths.pop())
        self.library.SSL_version.argtypes = [ctypes.c_void_p]
        self.library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]

    def change(self, ssl_object):
        at = id(ssl_object._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
        connection = ctypes.c_void_p.from_address(at)
        assert self.library.SSL_version(connection) == 0x304
        # SSL_KEY_UPDATE_REQUESTED: the next write sends it.
        assert self.library.SSL_key_update(connection, 1) == 1


class Stream:
    """One CONNECT and the application's connection that it carries."""

    def __init__(self, tunnel, number):
        self.tunnel, self.number = tunnel, number
        self.arrived = asyncio.Queue()
        self.window = asyncio.Event()
        self.answered = asyncio.get_running_loop().create_future()
        self.tasks, self.writer, self.over = [], None, False

    def carry(self, reader, writer):
        self.writer = writer
        self.tasks = [asyncio.create_task(self.deliver(writer)), asyncio.create_task(self.send(reader))]

    async def deliver(self, writer):
        """From the tunnel to the application. Credit for the stream returns when the application took the bytes."""
        try:
            while (chunk := await self.arrived.get()) is not None:
                data, credit = chunk
                writer.write(data)
                await writer.drain()
                self.tunnel.credit(self.number, credit)
            writer.write_eof()
            self.half_done()
        except OSError:
            self.reset()

    async def send(self, reader):
        """From the application to the tunnel."""
        tunnel, connection = self.tunnel, self.tunnel.connection
        try:
            while data := await reader.read(CHUNK):
                view = memoryview(data)
                while view:
                    room = min(connection.local_flow_control_window(self.number), connection.max_outbound_frame_size)
                    if room <= 0:
                        self.window.clear()
                        await self.window.wait()
                        continue
                    connection.send_data(self.number, bytes(view[:room]))
                    view = view[room:]
                    tunnel.flush()
                    await tunnel.writer.drain()
            connection.end_stream(self.number)
            tunnel.flush()
            self.half_done()
        except OSError:
            self.reset()
        except StreamClosedError:
            pass

    def half_done(self):
        self.over += 1
        if self.over == 2:
            self.writer.close()
            self.tunnel.forget(self.number)

    def reset(self):
        """The application broke off."""
        tell("broken", stream=self.number)
        try:
            self.tunnel.connection.reset_stream(self.number, ErrorCodes.CANCEL)
            self.tunnel.flush()
        except StreamClosedError:
            pass
        self.end()

    def end(self):
        """The application is told that it is over, in no orderly way."""
        for task in self.tasks:
            task.cancel()
        if self.writer is not None:
            hang_up(self.writer)
        if not self.answered.done():
            self.answered.set_exception(ConnectionResetError())
        self.tunnel.forget(self.number)


class Tunnel:
    """One TLS connection."""

    numbers = 0

    def __init__(self, reader, writer, client, application):
        Tunnel.numbers += 1
        self.number, self.application = Tunnel.numbers, application
        self.reader, self.writer = reader, writer
        self.client = client
        # h2's own checks want :scheme and :path even of a CONNECT, against RFC 9113 §8.5. What comes is told, and the test looks at it.
        self.connection = H2Connection(H2Configuration(
            client_side=client, header_encoding="utf-8", validate_inbound_headers=False, validate_outbound_headers=False))
        # h2 takes a GOAWAY for the end of everything, against RFC 9113 §6.8, so it does not get to see one.
        self.connection._frame_dispatch_table[GoAwayFrame] = (
            lambda frame: ([], [GoneAway(frame.error_code, frame.last_stream_id)]))
        self.streams, self.highest, self.leaving, self.refusing = {}, 0, False, False

    def start(self):
        tls = self.writer.get_extra_info("ssl_object")
        self.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        names = [value for kind, value in tls.getpeercert().get("subjectAltName", ()) if kind == "URI"]
        tell("tunnel", tunnel=self.number, peer=names, tls=tls.version(), cipher=tls.cipher()[0], alpn=tls.selected_alpn_protocol())
        if names != [PEER]:
            self.writer.transport.abort()
            raise ConnectionError(f"{names} is not {PEER}")
        self.connection.initiate_connection()
        self.connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW})
        self.connection.increment_flow_control_window(16 << 20)
        self.flush()

    def flush(self):
        if data := self.connection.data_to_send():
            self.writer.write(data)

    def credit(self, stream, length):
        try:
            self.connection.increment_flow_control_window(length, stream)
            self.flush()
        except (StreamClosedError, ValueError):
            pass

    def forget(self, stream):
        self.streams.pop(stream, None)
        if self.client and self.leaving and not self.streams:
            # Closing is the client's part; a server waits for it. Not at once: OpenSSL takes what still comes after its
            # close_notify for an error, asyncio then drops what it has not sent, and credit does come.
            asyncio.get_running_loop().call_later(0.5, self.writer.close)

    async def run(self):
        try:
            while data := await self.reader.read(1 << 18):
                for event in self.connection.receive_data(data):
                    self.on(event)
                self.flush()
        except OSError as cause:
            tell("lost", tunnel=self.number, cause=repr(cause))
        for stream in list(self.streams.values()):
            stream.end()
        self.writer.close()
        tell("end", tunnel=self.number)

    def on(self, event):
        stream = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, RequestReceived):
            self.request(event)
        elif isinstance(event, ResponseReceived) and stream:
            stream.answered.set_result(dict(event.headers)[":status"])
        elif isinstance(event, DataReceived):
            # Credit for the tunnel returns at once: one application that takes nothing must not stop the others.
            if event.flow_controlled_length:
                self.connection.increment_flow_control_window(event.flow_controlled_length)
            if stream and event.data:
                stream.arrived.put_nowait((event.data, event.flow_controlled_length))
        elif isinstance(event, StreamEnded) and stream:
            stream.arrived.put_nowait(None)
        elif isinstance(event, StreamReset):
            tell("reset", tunnel=self.number, stream=event.stream_id, code=int(event.error_code), live=bool(stream))
            if stream:
                stream.end()
        elif isinstance(event, WindowUpdated):
            for stream in list(self.streams.values()):
                stream.window.set()
        elif isinstance(event, GoneAway):
            tell("goaway", tunnel=self.number, code=int(event.error_code), last=event.last_stream_id)
            self.leaving = True
        elif isinstance(event, PingAckReceived):
            tell("pong", tunnel=self.number)
        # Other kinds need no answer of ours, or h2 has given it.

    def request(self, event):
        if self.refusing:
            # Nobody answers it: the GOAWAY says that it was never looked at.
            self.refusing = False
            tell("left out", tunnel=self.number, stream=event.stream_id)
            self.go_away()
            return
        self.highest = event.stream_id
        stream = self.streams[event.stream_id] = Stream(self, event.stream_id)
        stream.answered.set_result(None)
        head = {name: value for name, value in event.headers if name.startswith(":")}
        tell("connect", tunnel=self.number, stream=event.stream_id, head=head)
        asyncio.create_task(self.dial(stream))

    async def dial(self, stream):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.application)
        except OSError:
            self.connection.send_headers(stream.number, [(":status", "503")], end_stream=True)
            self.flush()
            self.forget(stream.number)
            return
        if stream.number in self.streams:
            self.connection.send_headers(stream.number, [(":status", "200")])
            self.flush()
            stream.carry(reader, writer)
        else:
            hang_up(writer)

    async def open(self, authority, reader, writer):
        number = self.connection.get_next_available_stream_id()
        stream = self.streams[number] = Stream(self, number)
        self.connection.send_headers(number, [(":method", "CONNECT"), (":authority", authority)])
        self.flush()
        try:
            status = await stream.answered
        except ConnectionResetError:
            hang_up(writer)
            return
        tell("answer", tunnel=self.number, stream=number, status=status)
        if status == "200":
            stream.carry(reader, writer)
        else:
            hang_up(writer)

    def go_away(self):
        """h2 lets nothing be sent after a GOAWAY of its own, so this one goes out without its knowledge."""
        self.leaving = True
        self.flush()
        self.writer.write(GoAwayFrame(0, last_stream_id=self.highest, error_code=0).serialize())
        tell("left", tunnel=self.number, last=self.highest, streams=len(self.streams))


def context(purpose, chain, key, root):
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(chain, key)
    made.load_verify_locations(root)
    # Identities are URIs, which are compared with the one expected; there is no host name to look at.
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.set_alpn_protocols(["h2"])

    def watch(_connection, direction, _version, _content, message, _data):
        if getattr(message, "name", "") == "KEY_UPDATE":
            tell("key update", direction=direction)

    made._msg_callback = watch
    return made


async def main():
    role, chain, key, root, _, port, *rest = sys.argv[1:]
    tunnels = []
    server = ssl.PROTOCOL_TLS_SERVER if role == "serves" else ssl.PROTOCOL_TLS_CLIENT
    tls = context(server, chain, key, root)

    async def incoming(reader, writer):
        tunnel = Tunnel(reader, writer, False, int(rest[0]))
        try:
            tunnel.start()
        except ConnectionError as cause:
            tell("stranger", cause=str(cause))
            return
        tunnels.append(tunnel)
        await tunnel.run()
        tunnels.remove(tunnel)

    opening = asyncio.Lock()

    async def outgoing(reader, writer):
        async with opening:
            tunnel = next((it for it in tunnels if not it.leaving), None)
            if tunnel is None:
                try:
                    there = await asyncio.open_connection(rest[0], 15008, ssl=tls)
                    tunnel = Tunnel(*there, True, None)
                    tunnel.start()
                except OSError as cause:
                    tell("stranger", cause=str(cause))
                    hang_up(writer)
                    return
                tunnels.append(tunnel)

                async def live():
                    await tunnel.run()
                    tunnels.remove(tunnel)

                tunnel.task = asyncio.create_task(live())
        await tunnel.open(rest[1], reader, writer)

    if role == "serves":
        await asyncio.start_server(incoming, "0.0.0.0", int(port), ssl=tls)
    else:
        await asyncio.start_server(outgoing, "127.0.0.1", int(port))
    tell("ready")
    keys = Keys()
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while command := (await commands.readline()).decode().strip():
        for tunnel in list(tunnels):
            if command == "keys":
                keys.change(tunnel.writer.get_extra_info("ssl_object"))
                tunnel.connection.ping(b"new keys")
                tunnel.flush()
            elif command == "leave":
                tunnel.go_away()
            elif command == "refuse":
                tunnel.refusing = True


PEER = sys.argv[5]
asyncio.run(main())
