//! Each setting: its default, and what is refused.

use super::*;

fn minimal() -> RawConfig {
    RawConfig { data: Some("/data".into()), ..RawConfig::default() }
}

#[test]
fn defaults_are_closed_where_no_credentials_are_asked() {
    let config = minimal().validate().unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:6443");
    assert!(config.metrics.ip().is_loopback());
    assert!(!config.clients_allow.contains("10.0.0.1".parse().unwrap()));
    assert!(config.clients_allow.contains("127.0.0.1".parse().unwrap()));
}

#[test]
fn services_are_seen_by_linked_peers_where_there_are_some() {
    let visibility = |raw: RawConfig| {
        let config = RawConfig { services: vec!["a=h:1".into(), "b=h:2 visibility=private".into()], ..raw };
        let services = config.validate().unwrap().services;
        ["a", "b"].map(|name| services.get(name).unwrap().visibility.clone())
    };
    assert_eq!(visibility(minimal()), [Visibility::Cluster, Visibility::Private]);
    let linked = RawConfig { remote_peers: vec!["a:1".into()], ..minimal() };
    assert_eq!(visibility(linked), [Visibility::Linked, Visibility::Private]);
}

#[test]
fn variables_of_the_seeds_own_project_are_read() {
    let key = MeshKey::generate().unwrap().to_text().to_string();
    let variables: Vec<(String, String)> = [
        ("REMOTE_PEER_ADDR", "a.example:6443, [2001:db8::1]:6443"),
        ("SERVICE_ADDR", "a.example:80,web:127.0.0.1:8081, v6:[::1]:8082"),
        ("PEER_NAME", "a"),
        ("PEER_ID", "C6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        ("PEER_MESH_KEY", &key),
        ("PEER_BIND_ADDR", ":6443"),
        ("PEER_LISTEN_ADDRESS", ":9090"),
        ("PEER_TELEMETRY_PATH", "/telemetry"),
        ("PEER_RECONNECT_INTERVAL_SECONDS", "7"),
        ("PEER_MAX_RECONNECT", "9"),
        ("PEER_HEARTBEAT_INTERVAL_SECONDS", "2"),
        ("PEER_CONNECTION_TIMEOUT_SECONDS", "20"),
        ("LOG_LEVEL", "debug"),
        ("LOG_FORMAT", "json"),
        ("P2P_PEER_NAME", "b"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let loaded = p2p_runtime::config::load(None, &VARIABLES, &variables, &minimal()).unwrap();
    assert_eq!(loaded.ignored, []);
    let config = loaded.raw.validate().unwrap();
    assert_eq!(config.remote_peers.len(), 2);
    let services = config.services.iter().map(|(name, service)| format!("{name} {}", service.backend));
    let services: Vec<String> = services.collect();
    assert_eq!(services, ["a.example a.example:80", "v6 [::1]:8082", "web 127.0.0.1:8081"]);
    assert_eq!((config.name.as_deref(), config.id.is_some()), (Some("b"), true));
    assert_eq!(&*config.mesh_key.unwrap().to_text(), &key);
    assert_eq!(config.listen.to_string(), "0.0.0.0:6443");
    assert_eq!((config.metrics.to_string(), &*config.telemetry_path), ("0.0.0.0:9090".into(), "/telemetry"));
    assert_eq!((config.reconnect_interval.as_secs(), config.max_reconnect), (7, Some(9)));
    assert_eq!((config.heartbeat.every.as_secs(), config.heartbeat.silence.as_secs()), (2, 20));
    assert_eq!((config.log_level, config.log_format), (slog::Level::Debug, LogFormat::Json));
}

#[test]
fn each_wrong_setting_is_named() {
    for (raw, setting) in [
        (RawConfig::default(), "data"),
        (RawConfig { id: Some("C1".into()), ..minimal() }, "id"),
        (RawConfig { id: Some("S6ba7b810-9dad-11d1-80b4-00c04fd430c8".into()), ..minimal() }, "id"),
        (RawConfig { listen: Some("localhost".into()), ..minimal() }, "listen"),
        (RawConfig { servers: vec!["h".into()], ..minimal() }, "servers"),
        (RawConfig { token: Some("x".into()), ..minimal() }, "token"),
        (RawConfig { zone: Some("a\nb".into()), ..minimal() }, "zone"),
        (RawConfig { services: vec!["web".into()], ..minimal() }, "services"),
        (RawConfig { remote_peers: vec!["a".into()], ..minimal() }, "remote_peers"),
        (RawConfig { remote_peers: vec!["a:1".into(); 65], ..minimal() }, "remote_peers"),
        (RawConfig { mesh_key: Some("x".into()), ..minimal() }, "mesh_key"),
        (RawConfig { mesh_key_file: Some("/nonexistent".into()), ..minimal() }, "mesh_key_file"),
        (RawConfig { telemetry_path: Some("metrics".into()), ..minimal() }, "telemetry_path"),
        (RawConfig { telemetry_path: Some("/readyz".into()), ..minimal() }, "telemetry_path"),
        (RawConfig { telemetry_path: Some("/{x}".into()), ..minimal() }, "telemetry_path"),
        (RawConfig { tunnels_per_remote: Some(0), ..minimal() }, "tunnels_per_remote"),
        (RawConfig { reconnect_interval_seconds: Some(0), ..minimal() }, "reconnect_interval_seconds"),
        (RawConfig { heartbeat_interval_seconds: Some(11), ..minimal() }, "heartbeat_interval_seconds"),
        (RawConfig { connection_timeout_seconds: Some(5), ..minimal() }, "connection_timeout_seconds"),
        (RawConfig { services: vec!["a=h:1".into(), "A=h:2".into()], ..minimal() }, "services"),
        (RawConfig { clients_allow: vec!["lan".into()], ..minimal() }, "clients_allow"),
        (RawConfig { bind: vec!["6379".into()], ..minimal() }, "bind"),
        (RawConfig { bind: vec!["6379=a".into(), "127.0.0.1:6379=b".into()], ..minimal() }, "bind"),
        (RawConfig { bind: vec!["0=a".into(); 257], ..minimal() }, "bind"),
        (RawConfig { proxy_protocol_from: vec!["10.0.0.0/40".into()], ..minimal() }, "proxy_protocol_from"),
        (RawConfig { mesh: Some("star".into()), ..minimal() }, "mesh"),
        (RawConfig { on_servers_lost: Some("panic".into()), ..minimal() }, "on_servers_lost"),
        (RawConfig { print_tables: Some("no".into()), ..minimal() }, "print_tables"),
        (RawConfig { access_log: Some("yes".into()), ..minimal() }, "access_log"),
        (RawConfig { log_level: Some("loud".into()), ..minimal() }, "log_level"),
    ] {
        assert_eq!(raw.validate().unwrap_err().setting, setting);
    }
}
