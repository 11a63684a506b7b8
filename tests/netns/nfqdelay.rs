//! Holds the packets of one NFQUEUE for a fixed time (plus jitter), then accepts them.
//!
//! A stand-in for `tc netem delay` on kernels without `sch_netem`. Packets never leave the kernel (copy mode META):
//! only their ids cross netlink, and verdicts are sent in batches.
//!
//! `nfqdelay QUEUE DELAY_MS [JITTER_MS]`: order is kept; jitter is uniform in +-JITTER_MS. No crates, so that
//! `natlab` compiles it with nothing but `rustc`.

use std::collections::VecDeque;
use std::os::raw::{c_int, c_long, c_uint, c_ulong, c_void};
use std::time::{Duration, Instant};

extern "C" {
    fn socket(d: c_int, t: c_int, p: c_int) -> c_int;
    fn bind(fd: c_int, a: *const c_void, l: c_uint) -> c_int;
    fn setsockopt(fd: c_int, l: c_int, o: c_int, v: *const c_void, n: c_uint) -> c_int;
    fn send(fd: c_int, b: *const c_void, n: usize, f: c_int) -> isize;
    fn recv(fd: c_int, b: *mut c_void, n: usize, f: c_int) -> isize;
    fn ppoll(p: *mut PollFd, n: c_ulong, t: *const TimeSpec, m: *const c_void) -> c_int;
    fn prctl(o: c_int, a: c_ulong) -> c_int;
}
#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}
#[repr(C)]
struct TimeSpec {
    sec: c_long,
    nsec: c_long,
}

const NFNL_QUEUE: u16 = 3 << 8;
const PACKET: u16 = NFNL_QUEUE;
const CONFIG: u16 = NFNL_QUEUE | 2;
const VERDICT_BATCH: u16 = NFNL_QUEUE | 3;

/// One nfnetlink message carrying one attribute.
fn message(kind: u16, queue: u16, attr: u16, body: &[u8], ack: bool) -> Vec<u8> {
    let attr_len = 4 + body.len();
    let total = 16 + 4 + (attr_len + 3) / 4 * 4;
    let mut m = Vec::with_capacity(total);
    m.extend((total as u32).to_ne_bytes());
    m.extend(kind.to_ne_bytes());
    m.extend((if ack { 1 | 4u16 } else { 1 }).to_ne_bytes()); // NLM_F_REQUEST [| NLM_F_ACK]
    m.extend([0; 8]); // sequence, port id
    m.extend([0, 0]); // AF_UNSPEC, NFNETLINK_V0
    m.extend(queue.to_be_bytes());
    m.extend((attr_len as u16).to_ne_bytes());
    m.extend(attr.to_ne_bytes());
    m.extend(body);
    m.resize(total, 0);
    m
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    if a.len() < 3 {
        eprintln!("usage: nfqdelay QUEUE DELAY_MS [JITTER_MS]");
        std::process::exit(2);
    }
    let queue: u16 = a[1].parse().expect("QUEUE");
    let ms = |i: usize| a.get(i).map_or(0.0, |s| s.parse::<f64>().expect("milliseconds")) * 1e3;
    let (delay, jitter) = (ms(2), ms(3)); // microseconds

    let fd = unsafe { socket(16, 3 | 0o2000000, 12) }; // AF_NETLINK, SOCK_RAW|CLOEXEC, NETLINK_NETFILTER
    let addr: [u16; 6] = [16, 0, 0, 0, 0, 0];
    assert!(fd >= 0 && unsafe { bind(fd, addr.as_ptr() as _, 12) } == 0, "netlink socket (root?)");
    let set = |level, opt, v: c_int| unsafe { setsockopt(fd, level, opt, &v as *const _ as _, 4) };
    set(1, 33, 128 << 20); // SO_RCVBUFFORCE
    set(270, 5, 1); // SOL_NETLINK, NETLINK_NO_ENOBUFS
    unsafe { prctl(29, 1) }; // PR_SET_TIMERSLACK 1 ns

    let mut buf = vec![0u8; 4096];
    let mut put = |m: Vec<u8>, ack: bool| unsafe {
        assert!(send(fd, m.as_ptr() as _, m.len(), 0) == m.len() as isize, "netlink send");
        if ack {
            let n = recv(fd, buf.as_mut_ptr() as _, buf.len(), 0);
            let err = i32::from_ne_bytes(buf[16..20].try_into().unwrap());
            assert!(n >= 20 && err == 0, "NFQUEUE refused: errno {}", -err);
        }
    };
    put(message(CONFIG, queue, 1, &[1, 0, 0, 2], true), true); // NFQA_CFG_CMD: BIND
    put(message(CONFIG, queue, 2, &[0, 0, 0, 0, 1], true), true); // PARAMS: range 0, NFQNL_COPY_META
    put(message(CONFIG, queue, 3, &400_000u32.to_be_bytes(), true), true); // QUEUE_MAXLEN
                                                                           // NFQA_CFG_MASK and NFQA_CFG_FLAGS in one message: NFQA_CFG_F_GSO, do not segment.
    let mut m = message(CONFIG, queue, 4, &4u32.to_be_bytes(), true);
    m.extend([8, 0, 5, 0]);
    m.extend(4u32.to_be_bytes());
    let n = m.len() as u32;
    m[0..4].copy_from_slice(&n.to_ne_bytes());
    put(m, true);
    println!("ready");

    let mut held: VecDeque<(Instant, u32)> = VecDeque::new();
    let mut last = Instant::now();
    let mut rng = 0x9E37_79B9_7F4A_7C15u64 ^ std::process::id() as u64;
    loop {
        // Release everything that is due with one batch verdict (ids are handed out in order).
        let now = Instant::now();
        let mut upto = None;
        while held.front().is_some_and(|&(due, _)| due <= now) {
            upto = held.pop_front().map(|(_, id)| id);
        }
        if let Some(id) = upto {
            let mut v = 1u32.to_be_bytes().to_vec(); // NF_ACCEPT
            v.extend(id.to_be_bytes());
            let m = message(VERDICT_BATCH, queue, 2, &v, false);
            unsafe { send(fd, m.as_ptr() as _, m.len(), 0) };
        }
        // Wait for a packet or for the next due time.
        let wait = held.front().map(|&(due, _)| due.saturating_duration_since(Instant::now()));
        let ts = wait.map(|d| TimeSpec { sec: d.as_secs() as _, nsec: d.subsec_nanos() as _ });
        let mut p = PollFd { fd, events: 1, revents: 0 };
        let tp = ts.as_ref().map_or(std::ptr::null(), |t| t as *const _);
        if unsafe { ppoll(&mut p, 1, tp, std::ptr::null()) } <= 0 {
            continue;
        }
        let now = Instant::now();
        for _ in 0..256 {
            let n = unsafe { recv(fd, buf.as_mut_ptr() as _, buf.len(), 0x40) }; // MSG_DONTWAIT
            if n < 32 {
                break;
            }
            if u16::from_ne_bytes([buf[4], buf[5]]) != PACKET {
                continue;
            }
            // The first attribute is NFQA_PACKET_HDR: packet id (be32), protocol, hook.
            let id = u32::from_be_bytes(buf[24..28].try_into().unwrap());
            rng ^= rng << 13;
            rng ^= rng >> 7;
            rng ^= rng << 17;
            let j = jitter * ((rng >> 11) as f64 / (1u64 << 52) as f64 - 1.0);
            let due = now + Duration::from_nanos(((delay + j).max(0.0) * 1e3) as u64);
            last = last.max(due);
            held.push_back((last, id));
        }
    }
}
