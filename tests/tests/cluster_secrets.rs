//! What is secret is in the files it belongs in, which their owner alone may read, and nowhere else: not in a log of any
//! level, not in a metric, not in an answer, not in the audit log, not in a backup (SPEC I6, I9).

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use p2p_common::addr::HostPort;
use p2p_runtime::identity::Token;
use p2p_tests::backend::Backend;
use p2p_tests::cluster::{Cluster, Lifetime, PATIENCE, Start, binaries, run, wait_for};
use p2p_tests::http;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

const SERVICE: &str = "web.example";
/// A secret is looked for by so many of its bytes: a part of it is one, too.
const PART_BYTES: usize = 16;

/// What must not be seen, by what it is: the forms it could be seen in.
#[derive(Default)]
struct Secrets(BTreeMap<String, Vec<Vec<u8>>>);

impl Secrets {
    /// A text that is secret as a whole, its parts included.
    fn text(&mut self, what: &str, text: &str) {
        let text = text.trim().as_bytes();
        let forms = self.0.entry(what.to_owned()).or_default();
        forms.push(text[text.len() - 2 * PART_BYTES..].to_vec());
        forms.push(text[text.len() / 2..][..PART_BYTES].to_vec());
    }

    /// Bytes, as they are, in hexadecimal digits, and as a list of numbers.
    fn bytes(&mut self, what: &str, bytes: &[u8]) {
        let part = &bytes[..PART_BYTES];
        let joined = |text: fn(&u8) -> String, between: &str| {
            part.iter().map(text).collect::<Vec<_>>().join(between).into_bytes()
        };
        let forms = self.0.entry(what.to_owned()).or_default();
        forms.push(part.to_vec());
        forms.push(joined(|byte| format!("{byte:02x}"), ""));
        forms.push(joined(|byte| format!("{byte:02X}"), ""));
        forms.push(joined(u8::to_string, ", "));
    }

    fn token(&mut self, what: &str, text: &str) -> anyhow::Result<()> {
        let token: Token = text.trim().parse()?;
        self.text(what, text);
        self.bytes(what, token.secret());
        Ok(())
    }

    /// A private key in a file, in every form.
    fn key_file(&mut self, path: &Path) -> anyhow::Result<()> {
        let what = path.display().to_string();
        let pem = std::fs::read_to_string(path)?;
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        // The second line of a P-256 key in PKCS #8 holds what is private; the first is the same for all.
        self.text(&what, &body[40..92]);
        let PrivateKeyDer::Pkcs8(der) = PrivateKeyDer::from_pem_slice(pem.as_bytes())? else {
            anyhow::bail!("{what} is no PKCS #8")
        };
        // The scalar: an octet string of 32 bytes behind its version (RFC 5915).
        let der = der.secret_pkcs8_der();
        let at = der.windows(5).position(|part| part == [2, 1, 1, 4, 32]).context("no scalar")?;
        self.bytes(&what, &der[at + 5..][..32]);
        Ok(())
    }

    /// What of these is in `content`.
    fn found_in(&self, content: &[u8]) -> Vec<&str> {
        let holds = |form: &Vec<u8>| content.windows(form.len()).any(|window| window == *form);
        self.0.iter().filter(|(_, forms)| forms.iter().any(holds)).map(|(what, _)| what.as_str()).collect()
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else if path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// Does what people do, rightly and wrongly, and gives all that was printed.
fn use_it(cluster: &Cluster, tokens: &[(&str, String)]) -> anyhow::Result<Vec<(String, String)>> {
    let server = &cluster.servers[1];
    let address = server.listen().to_string();
    let ca = server.data().join("ca.pem");
    let ca = ca.to_str().context("a path")?;
    let mut printed = Vec::new();
    let mut keep = |output: p2p_tests::cluster::Output, line: &str| {
        printed.push((line.to_owned(), output.stdout + &output.stderr));
    };
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["members"],
        &["peers", "--json"],
        &["services"],
        &["settings", "list"],
        &["settings", "set", "description", "x"],
        &["token", "list"],
        &["token", "list", "--json"],
        &["token", "revoke", "00000000000000ff"],
        &["audit", "--last", "0"],
    ] {
        keep(server.cli(args)?, &args.join(" "));
    }
    // With each of the tokens from elsewhere, and with some that are damaged.
    for (name, token) in tokens {
        let damaged = format!("{}x", &token[..token.len() - 3]);
        for token in [token.as_str(), damaged.as_str(), &token[6..]] {
            for verb in ["status", "members"] {
                let mut command = Command::new(&binaries()?.server);
                command.args([verb, "--server", &address, "--ca", ca, "--timeout", "3s", "--token", token]);
                keep(run(command, PATIENCE)?, &format!("{verb} with {name}"));
            }
            // Joining again with what is used up, of another role, or damaged.
            let dir = tempfile::tempdir()?;
            let mut command = Command::new(&binaries()?.server);
            command.args([
                "run",
                "--listen",
                "127.0.0.1:0",
                "--ops",
                "127.0.0.1:0",
                "--registry",
                "127.0.0.1:0",
            ]);
            command.args(["--join", &address, "--log-level", "debug", "--data"]).arg(dir.path().join("d"));
            command.env("P2P_SERVER_TOKEN", token);
            // Refused ones end; one whose token is good would stay, and is none of these.
            if *name != "server" {
                keep(run(command, PATIENCE)?, &format!("join with {name}"));
            }
        }
    }
    for peer in &cluster.peers {
        for args in [&["status"][..], &["status", "--json"], &["tables"], &["links", "--json"]] {
            keep(peer.cli(args)?, &args.join(" "));
        }
    }
    for (what, addr) in cluster
        .servers
        .iter()
        .map(|server| ("a Server", server.ops()))
        .chain(cluster.peers.iter().map(|peer| ("a Peer", peer.metrics())))
    {
        for path in ["/metrics", "/healthz", "/readyz"] {
            printed.push((format!("{path} of {what}"), http::get(addr, "localhost", path)?.text()));
        }
    }
    Ok(printed)
}

#[test]
fn secrets_are_where_they_belong_and_nowhere_else() {
    let backend = Backend::start("b1").unwrap();
    let mut cluster = Cluster::empty(Lifetime::Bound).unwrap();
    let tried = (|| {
        let mut secrets = Secrets::default();
        let mut mesh_key = Command::new(&binaries()?.peer);
        mesh_key.arg("mesh-key");
        let mesh_key = run(mesh_key, PATIENCE)?.success()?.trim().to_owned();
        secrets.text("mesh key", &mesh_key);

        let ca_secret = "a secret over the CA key of the first server alone";
        secrets.text("CA secret", ca_secret);

        // Everybody reports all there is to report.
        let mut tokens = Vec::new();
        for nth in 0..3 {
            let server = cluster.new_server()?;
            server.set_variable("P2P_SERVER_LOG_LEVEL", "trace");
            if nth == 0 {
                server.set_variable("P2P_CA_SECRET", ca_secret);
                server.start(Start::Bootstrap)?;
                server.wait_ready(PATIENCE)?;
                for role in ["server", "peer", "operator", "reader"] {
                    tokens.push((role, cluster.token(role, 2)?));
                }
                continue;
            }
            let (token, introducer) = (tokens[0].1.clone(), cluster.servers[0].listen());
            cluster.servers[nth].start(Start::Join { introducer, token })?;
            cluster.servers[nth].wait_ready(PATIENCE)?;
        }
        cluster.wait_agreed(PATIENCE)?;
        let introducer = cluster.servers[0].listen();
        for nth in 0..2 {
            let peer = cluster.new_peer()?;
            peer.set_variable("LOG_LEVEL", "trace");
            peer.introduce(&[introducer], &tokens[1].1);
            if nth == 0 {
                peer.offer(SERVICE, backend.addr());
            }
            peer.start()?;
            peer.wait_working(3, PATIENCE)?;
        }
        // Two that a mesh key links.
        let linked: HostPort = {
            let peer = cluster.new_peer()?;
            peer.set_variable("LOG_LEVEL", "trace");
            peer.set_variable("PEER_MESH_KEY", &mesh_key);
            peer.start()?;
            peer.listen().into()
        };
        let peer = cluster.new_peer()?;
        peer.set_variable("LOG_LEVEL", "trace");
        peer.set_variable("PEER_MESH_KEY", &mesh_key);
        peer.set_variable("REMOTE_PEER_ADDR", &linked.to_string());
        peer.start()?;
        for nth in 2..4 {
            cluster.peers[nth].wait_working(0, PATIENCE)?;
        }
        wait_for("the service", PATIENCE, || {
            ensure!(http::get(cluster.peers[1].listen(), SERVICE, "/")?.status == 200);
            Ok(())
        })?;

        for (role, token) in &tokens {
            secrets.token(&format!("{role} token"), token)?;
        }
        let nodes: Vec<PathBuf> = cluster
            .servers
            .iter()
            .map(|server| server.data().to_owned())
            .chain(cluster.peers.iter().map(|peer| peer.data().to_owned()))
            .collect();
        for data in &nodes {
            secrets.key_file(&data.join("key.pem"))?;
            let operator = data.join("operator.token");
            if operator.exists() {
                let token = std::fs::read_to_string(&operator)?;
                secrets.token(&operator.display().to_string(), &token)?;
            }
        }
        secrets.key_file(&cluster.servers[1].data().join("ca-key.pem"))?;
        let encrypted = cluster.servers[0].data().join("ca-key.pem");
        let backup = cluster.dir().join("cluster.backup");
        cluster.servers[0].cli(&["backup", "--out", backup.to_str().context("a path")?])?.success()?;

        let mut seen = Vec::new();
        for (what, text) in use_it(&cluster, &tokens)? {
            seen.extend(
                secrets.found_in(text.as_bytes()).into_iter().map(|secret| format!("{secret} in {what}")),
            );
        }
        let mut all = Vec::new();
        files(cluster.dir(), &mut all)?;
        let (mut logs, mut detailed, mut kept) = (0, 0, 0);
        for path in &all {
            let content = std::fs::read(path)?;
            let found = secrets.found_in(&content);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(".log") {
                logs += 1;
                detailed += usize::from(content.windows(6).any(|part| part == b" DEBG "));
            }
            // Files that are there for a secret, each for its own.
            if ["key.pem", "ca-key.pem", "operator.token"].contains(&name) {
                kept += 1;
                let mode = path.metadata()?.permissions().mode() & 0o777;
                ensure!(mode == 0o600, "{} has mode {mode:o}", path.display());
                let held = usize::from(*path != encrypted);
                ensure!(found.len() == held, "{} holds {found:?}", path.display());
                continue;
            }
            seen.extend(found.into_iter().map(|secret| format!("{secret} in {}", path.display())));
        }
        // Four Peers' and three Servers', the CA's three times, three operators' tokens.
        ensure!(kept == 7 + 3 + 3, "{kept} files of secrets");
        ensure!(logs >= 7 + 3 && detailed >= 5, "{logs} logs, {detailed} of them with details");
        ensure!(seen.is_empty(), "secrets were seen:\n{}", seen.join("\n"));
        println!("{} secrets looked for in {} files", secrets.0.len(), all.len());
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}
