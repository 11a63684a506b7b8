#!/usr/bin/env python3
"""An independent gRPC client: asks a Server for the Master and the members, and watches the Master change.

Nothing in here comes from the project but its protocol files: the stubs are generated from them at the start by
grpcio-tools, TLS and HTTP/2 are grpcio's. It stands for any application that follows the Master.

    python tests/interop/get_master.py --server 127.0.0.1:7402 --ca ca.pem --token-env P2P_TOKEN [--watch SECONDS]

The token is a reader's (`p2p-server token create --role reader`) and is taken from the environment. With
--watch it waits for another Master and ends when it has seen one. Exit status: 0 all was as promised, 1 something
was missing or wrong, 2 the command line is.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import sys
import tempfile
import time

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
# How long one answer may take; an election happens in between.
CALL_SECONDS = 10
SERVER_ID = re.compile(r"^S[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


class Missing(Exception):
    """Something the protocol promises is not so."""


def require(condition, what):
    if not condition:
        raise Missing(what)


def generate(into):
    """Generates the stubs below `into` and imports them."""
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("p2p/v1/*.proto"))
    arguments = ["protoc", f"--proto_path={PROTO}", f"--python_out={into}", f"--grpc_python_out={into}"]
    require(protoc.main(arguments + files) == 0, "protoc takes the protocol files")
    sys.path.insert(0, str(into))
    names = ("p2p.v1.cluster_pb2", "p2p.v1.cluster_pb2_grpc", "p2p.v1.common_pb2")
    return [importlib.import_module(name) for name in names]


class Printer:
    """Prints what was seen, for people or as one JSON object a line."""

    def __init__(self, as_json):
        self.as_json = as_json

    def say(self, event, **values):
        if self.as_json:
            print(json.dumps({"event": event, **values}), flush=True)
        else:
            print(f"{event}: " + ", ".join(f"{key} {value}" for key, value in values.items()), flush=True)


def shown(master):
    return {
        "id": master.id,
        "name": master.name,
        "addresses": list(master.addresses),
        "term": master.term,
        "epoch": master.epoch,
        "cluster_id": master.cluster_id,
        "provisional": master.provisional,
    }


def check_master(master):
    require(SERVER_ID.match(master.id), f"the Master's Id is a Server's: {master.id!r}")
    require(UUID.match(master.cluster_id), f"the cluster id is a UUID: {master.cluster_id!r}")
    require(master.term > 0, "the term, a fencing token, is above 0")
    require(master.addresses, "the Master has an address")
    require(0 < master.since_unix_ms <= (time.time() + 60) * 1000, "it is known since when")


def refused_with(code, call, what):
    """`call` must be refused with `code`."""
    try:
        call()
    except grpc.RpcError as error:
        require(error.code() == code, f"{what} gets {code.name}, not {error.code().name}: {error.details()}")
        return error.details()
    raise Missing(f"{what} is refused")


def ask(printer, cluster, bearer, pb, common):
    """One-shot look-ups. Returns the Master."""
    master = cluster.GetMaster(pb.GetMasterRequest(), metadata=bearer, timeout=CALL_SECONDS).master
    check_master(master)
    printer.say("master", **shown(master))

    reply = cluster.ListMembers(pb.ListMembersRequest(), metadata=bearer, timeout=CALL_SECONDS)
    require(not reply.stale, "the list of members is linearizable unless a stale one is asked for")
    require(reply.version > 0, "the table of members has a version")
    for row in reply.members:
        member = row.member
        require(SERVER_ID.match(member.id), f"a member's Id is a Server's: {member.id!r}")
        require(len(member.key_hash) == 32, f"{member.id} is bound to a key")
        printer.say(
            "member",
            id=member.id,
            name=member.name,
            addresses=list(member.addresses),
            role=common.MemberRole.Name(row.role),
            connected=row.connected,
        )
    require(master.id in [row.member.id for row in reply.members], "the Master is a member")
    require(len({row.member.id for row in reply.members}) == len(reply.members), "no member is listed twice")
    return master


def ask_what_is_forbidden(printer, cluster, operator, bearer, pb):
    """A reader looks, and nobody looks without a token."""
    request = pb.GetMasterRequest()
    for metadata, what in [
        ((), "a call without a token"),
        ((("authorization", "Bearer nonsense"),), "a call with nonsense for a token"),
    ]:
        answer = refused_with(
            grpc.StatusCode.UNAUTHENTICATED,
            lambda: cluster.GetMaster(request, metadata=metadata, timeout=CALL_SECONDS),
            what,
        )
        printer.say("refused", call=what, answer=answer)
    what = "a change by a reader"
    answer = refused_with(
        grpc.StatusCode.PERMISSION_DENIED,
        lambda: operator.ListTokens(pb.ListTokensRequest(), metadata=bearer, timeout=CALL_SECONDS),
        what,
    )
    printer.say("refused", call=what, answer=answer)


def watch(printer, cluster, bearer, pb, first, seconds):
    """Follows the Master until it is another one than `first`, never going back in (epoch, term)."""
    begin = time.monotonic()
    newest = (first.epoch, first.term)
    stream = cluster.WatchMaster(pb.WatchMasterRequest(), metadata=bearer, timeout=seconds)
    try:
        for reply in stream:
            at_ms = round((time.monotonic() - begin) * 1000)
            if not reply.HasField("master"):
                printer.say("no_master", at_ms=at_ms)
                continue
            master = reply.master
            check_master(master)
            require(master.cluster_id == first.cluster_id, "the cluster stays the same")
            order = (master.epoch, master.term)
            require(order >= newest, f"(epoch, term) never goes back: {order} after {newest}")
            newest = order
            printer.say("watched", at_ms=at_ms, **shown(master))
            if master.id != first.id and not master.provisional:
                require(order > (first.epoch, first.term), "another Master has a higher term")
                stream.cancel()
                return
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise Missing(f"another Master within {seconds} s") from error
        raise
    raise Missing("the stream of WatchMaster goes on")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="any Server of the cluster")
    parser.add_argument("--ca", required=True, metavar="FILE", help="ca.pem of any node's data directory")
    parser.add_argument("--token-env", default="P2P_TOKEN", metavar="NAME", help="variable with a reader token")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="wait so long for another Master")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    args = parser.parse_args()
    token = os.environ.get(args.token_env, "").strip()
    if not token:
        parser.error(f"the variable {args.token_env} holds no token")
    try:
        ca = pathlib.Path(args.ca).read_bytes()
    except OSError as error:
        parser.error(f"--ca: {error}")
    printer = Printer(args.json)
    bearer = (("authorization", f"Bearer {token}"),)
    credentials = grpc.ssl_channel_credentials(root_certificates=ca)
    try:
        with tempfile.TemporaryDirectory() as stubs, grpc.secure_channel(args.server, credentials) as channel:
            pb, pb_grpc, common = generate(stubs)
            cluster, operator = pb_grpc.ClusterStub(channel), pb_grpc.OperatorStub(channel)
            master = ask(printer, cluster, bearer, pb, common)
            ask_what_is_forbidden(printer, cluster, operator, bearer, pb)
            if args.watch is not None:
                watch(printer, cluster, bearer, pb, master, args.watch)
    except Missing as what:
        print(f"missing: {what}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"{args.server}: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    printer.say("done", version=grpc.__version__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
