"""A KV event publisher on pyzmq, shaped like vLLM's: PUB for batches, ROUTER for replay.

Plays the frames of a session file. Commands on stdin, one answer in JSON per command on stdout:

    send N        publish the next N batches
    hold N        the next N batches happen and can be replayed, but nobody is told
    live SEQ...   publish batches again, or those held, in this order
    file PATH     publish the content of a file as the payload of the next batch
    big BYTES     publish a payload of so many bytes as the next batch
    events JSON   publish a batch given as JSON, encoded by msgpack; {"bin": HEX} stands for bytes
    keep JSON     the same, but nobody is told, as with hold
    raw HEX...    publish a message of these frames, which is no batch
    restart       forget everything and count from 0 again, on the same ports; the connections
                  break, as with a real restart
    look          nothing
    quit          end

An answer is {"next": number of the next batch, "replays": requests served so far}.

The first line of stdout is {"pub": port, "replay": port or null}.
"""

import argparse
import json
import sys
import threading

import zmq

END = b"\xff" * 8


def encoded(batch):
    """The payload of a batch. Imported here, as only these commands need msgpack."""
    import msgpack

    def from_json(value):
        if isinstance(value, list):
            return [from_json(item) for item in value]
        if isinstance(value, dict):
            if value.keys() == {"bin"}:
                return bytes.fromhex(value["bin"])
            return {key: from_json(item) for key, item in value.items()}
        return value

    return msgpack.packb(from_json(batch))


def frames(path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if "event" in record:
                yield bytes.fromhex(record["event"][0]), bytes.fromhex(record["event"][2])


class Publisher:
    def __init__(self, args):
        self.args = args
        self.frames = list(frames(args.session))
        self.taken = 0
        self.ports = (args.pub_port, args.replay_port)
        self.start()

    def start(self):
        self.context = zmq.Context()
        self.next, self.kept, self.replays = 0, [], 0
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.pub = self.context.socket(zmq.PUB)
        self.pub.linger = 0
        self.pub.sndhwm = 100_000
        if self.args.connect:
            self.pub.connect(self.args.connect)
        else:
            self.pub.bind(f"tcp://127.0.0.1:{self.ports[0]}")
        def port(socket):
            return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])

        replay_port = None
        self.thread = None
        if not self.args.no_replay:
            router = self.context.socket(zmq.ROUTER)
            router.linger = 0
            router.bind(f"tcp://127.0.0.1:{self.ports[1]}")
            replay_port = port(router)
            self.thread = threading.Thread(target=self.serve, args=(router,), daemon=True)
            self.thread.start()
        self.ports = (port(self.pub), replay_port or 0)
        return {"pub": self.ports[0], "replay": replay_port}

    def stop(self):
        self.stopping.set()
        if self.thread:
            self.thread.join()
        self.pub.close()
        self.context.term()

    def serve(self, router):
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        while not self.stopping.is_set():
            if not poller.poll(20):
                continue
            identity, empty, start = router.recv_multipart()
            start = int.from_bytes(start, "big")
            self.replays += 1
            self.stopping.wait(self.args.delay)
            with self.lock:
                kept = [frame for frame in self.kept if frame[0] >= start]
            cut = kept[: self.args.pieces] if self.args.pieces else kept
            for seq, topic, payload in cut:
                before = [identity, b""] + ([topic] if self.args.framing == "topic" else [])
                router.send_multipart(before + [seq.to_bytes(8, "big"), payload])
            # A full queue swallows the rest, the end marker with it.
            if len(cut) == len(kept):
                before = [identity, b""] + ([b""] if self.args.framing == "topic" else [])
                router.send_multipart(before + [END, b""])
        router.close()

    def batch(self, payload, live=True):
        """The next batch: of the session, or with a payload of its own."""
        topic, recorded = self.frames[self.taken % len(self.frames)]
        topic = self.args.topic.encode() if self.args.topic else topic
        if payload is None:
            payload = recorded
            self.taken += 1
        with self.lock:
            self.kept = [*self.kept, (self.next, topic, payload)][-self.args.buffer:]
        if live and self.next not in self.args.drop:
            self.pub.send_multipart([topic, self.next.to_bytes(8, "big"), payload])
        self.next += 1

    def live(self, wanted):
        for number in wanted:
            for seq, topic, payload in self.kept:
                if seq == number:
                    self.pub.send_multipart([topic, seq.to_bytes(8, "big"), payload])

    def obey(self, command, *rest):
        if command in ("send", "hold"):
            for _ in range(int(rest[0])):
                self.batch(None, live=command == "send")
        elif command == "live":
            self.live([int(number) for number in rest])
        elif command == "file":
            with open(rest[0], "rb") as file:
                self.batch(file.read())
        elif command in ("events", "keep"):
            self.batch(encoded(json.loads(rest[0])), live=command == "events")
        elif command == "big":
            self.batch(bytes(int(rest[0])))
        elif command == "raw":
            self.pub.send_multipart([bytes.fromhex(frame) for frame in rest])
        elif command == "restart":
            self.stop()
            self.start()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("session", help="jsonl file with {event: [topic, seq, payload]} lines")
    parser.add_argument("--framing", choices=["plain", "topic"], default="topic",
                        help="replay without (vLLM <= 0.25) or with the topic frame")
    parser.add_argument("--drop", type=int, nargs="*", default=[], help="sequence numbers never sent live")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before a replay is answered")
    parser.add_argument("--pieces", type=int, default=0, help="answers per replay request, the end marker lost")
    parser.add_argument("--buffer", type=int, default=10_000, help="batches kept for replay")
    parser.add_argument("--connect", help="connect the PUB socket to this endpoint instead of binding it")
    parser.add_argument("--topic", help="instead of the recorded one")
    parser.add_argument("--no-replay", action="store_true")
    parser.add_argument("--pub-port", type=int, default=0)
    parser.add_argument("--replay-port", type=int, default=0)
    args = parser.parse_args()
    publisher = Publisher(args)
    answer = lambda value: print(json.dumps(value), flush=True)
    answer({"pub": publisher.ports[0], "replay": None if args.no_replay else publisher.ports[1]})
    for line in sys.stdin:
        command, *rest = line.split()
        if command in ("events", "keep"):
            rest = line.split(maxsplit=1)[1:]
        if command == "quit":
            break
        publisher.obey(command, *rest)
        answer({"next": publisher.next, "replays": publisher.replays})
    publisher.stop()


main()
