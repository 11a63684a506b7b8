//! Servers join, leave, are removed and hand over the title under reads and writes, while others freeze or die:
//! all that clients are told is linearizable (SPEC C7, C8).

use std::time::Duration;

use anyhow::{Context, ensure};
use p2p_tests::cluster::{Access, Cluster, PATIENCE, Signal, Start, run, wait_for};
use p2p_tests::history::{Clients, Load, Reads};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const STEPS: usize = 10;
/// Between so few and so many Servers, so that 3 vote, then 5.
const SIZES: (usize, usize) = (3, 5);

const LOAD: Load = Load {
    clients: 6,
    rest: Duration::from_millis(10),
    patience: Duration::from_secs(2),
    reads: Reads::Linearizable,
};

struct Churn<'a> {
    cluster: &'a mut Cluster,
    clients: Clients,
    /// For the clients.
    token: String,
    /// The places of those that are in the cluster; the others have left it.
    present: Vec<usize>,
    rng: StdRng,
}

impl<'a> Churn<'a> {
    fn begin(cluster: &'a mut Cluster, mut rng: StdRng) -> anyhow::Result<Self> {
        let token = cluster.servers[0].token("operator", 1, "1h")?;
        let servers: Result<Vec<_>, _> =
            cluster.servers.iter().map(|server| Access::of(server, &token)).collect();
        let clients = Clients::start(&servers?, LOAD, &mut rng)?;
        let present = (0..cluster.servers.len()).collect();
        Ok(Churn { cluster, clients, token, present, rng })
    }

    fn step(&mut self) -> anyhow::Result<String> {
        let can_join = self.present.len() < SIZES.1;
        let can_go = self.present.len() > SIZES.0;
        match self.rng.random_range(0..4) {
            0 | 1 if can_join => self.join(),
            2 if can_go => self.go("leave"),
            3 if can_go => self.go("remove"),
            _ => self.transfer(),
        }
    }

    fn any(&mut self) -> usize {
        *self.present.choose(&mut self.rng).expect("the cluster is never empty")
    }

    fn name(&self, place: usize) -> String {
        self.cluster.servers[place].name().to_owned()
    }

    fn join(&mut self) -> anyhow::Result<String> {
        let through = self.any();
        let join_token = self.cluster.servers[through].token("server", 1, "1h")?;
        let introducer = self.cluster.servers[through].listen();
        self.cluster.new_server()?.start(Start::Join { introducer, token: join_token })?;
        let place = self.cluster.servers.len() - 1;
        let disturbed = self.disturb()?;
        self.present.push(place);
        self.wait_agreed()?;
        self.clients.add_server(Access::of(&self.cluster.servers[place], &self.token)?);
        Ok(format!("{} joins through {}{disturbed}", self.name(place), self.name(through)))
    }

    /// One is taken out, by itself or by another.
    fn go(&mut self, verb: &str) -> anyhow::Result<String> {
        let gone = self.any();
        let name = self.name(gone);
        self.present.retain(|place| *place != gone);
        let (asked, args) = match verb {
            "leave" => (gone, vec!["leave"]),
            _ => (self.any(), vec!["remove", name.as_str()]),
        };
        let disturbed = self.ask(asked, &args)?;
        // By an answer that got lost, or by a disturbance, it may be undecided: the others can always remove it.
        wait_for("one Server less", PATIENCE, || {
            let at = &self.cluster.servers[self.present[0]];
            if at.members()?.members.iter().any(|member| member.name == name) {
                at.cli(&["remove", &name])?.success()?;
            }
            Ok(())
        })?;
        self.cluster.servers[gone].process_mut()?.wait(PATIENCE).context("its process")?;
        self.wait_agreed()?;
        Ok(format!("{verb} {name} at {}{disturbed}", self.name(asked)))
    }

    fn transfer(&mut self) -> anyhow::Result<String> {
        let asked = self.any();
        let members = self.cluster.servers[asked].members()?.members;
        let voters: Vec<_> = members.iter().filter(|member| member.role == "voter").collect();
        let to = voters.choose(&mut self.rng).context("nobody votes")?.name.clone();
        let disturbed = self.ask(asked, &["transfer", "--to", &to])?;
        self.wait_agreed()?;
        Ok(format!("transfer to {to} at {}{disturbed}", self.name(asked)))
    }

    /// Runs a command at one Server while another one freezes or dies, or nothing happens. The command may fail.
    fn ask(&mut self, asked: usize, args: &[&str]) -> anyhow::Result<String> {
        let command = self.cluster.servers[asked].command(args)?;
        let asking = std::thread::spawn(move || run(command, PATIENCE));
        let disturbed = self.disturb()?;
        let answer = asking.join().expect("asking does not panic")?;
        Ok(match answer.success() {
            Ok(_) => disturbed,
            Err(error) => format!("{disturbed} ({error})"),
        })
    }

    fn disturb(&mut self) -> anyhow::Result<String> {
        let victim = self.any();
        let pause = Duration::from_millis(self.rng.random_range(0..200));
        let length = Duration::from_millis(self.rng.random_range(200..1_200));
        let how = self.rng.random_range(0..3);
        let name = self.name(victim);
        let server = &mut self.cluster.servers[victim];
        std::thread::sleep(pause);
        match how {
            0 => Ok(String::new()),
            1 => {
                server.process_mut()?.signal(Signal::Stop)?;
                std::thread::sleep(length);
                server.process_mut()?.signal(Signal::Continue)?;
                Ok(format!(", {name} frozen {pause:?} after that for {length:?}"))
            }
            _ => {
                server.kill()?;
                server.start(Start::Again)?;
                Ok(format!(", {name} killed {pause:?} after that"))
            }
        }
    }

    /// Those present list each other and nobody else, with the voters of this size, under one Master.
    fn wait_agreed(&self) -> anyhow::Result<()> {
        let mut names: Vec<_> = self.present.iter().map(|place| self.name(*place)).collect();
        names.sort_unstable();
        let voters = if names.len() < 5 { 3 } else { 5 };
        wait_for("agreement", PATIENCE, || {
            let mut masters = Vec::new();
            for place in &self.present {
                let server = &self.cluster.servers[*place];
                let members = server.members()?.members;
                let mut listed: Vec<_> = members.iter().map(|member| member.name.clone()).collect();
                listed.sort_unstable();
                ensure!(listed == names, "{} lists {listed:?}, not {names:?}", server.name());
                ensure!(members.iter().all(|member| member.connected), "{}: {members:?}", server.name());
                let found = members.iter().filter(|member| member.role == "voter").count();
                ensure!(found == voters, "{} counts {found} voters, not {voters}", server.name());
                let master = server.master()?;
                ensure!(!master.provisional, "{} names {} for want of a quorum", server.name(), master.name);
                masters.push((master.term, master.name));
            }
            masters.dedup();
            ensure!(masters.len() == 1, "they name {masters:?}");
            Ok(())
        })
    }
}

#[test]
fn what_clients_are_told_is_linearizable_while_servers_come_and_go() -> anyhow::Result<()> {
    let seed = rand::random();
    println!("seed {seed}");
    let mut cluster = Cluster::start(3)?;
    let played = (|| {
        let mut churn = Churn::begin(&mut cluster, StdRng::seed_from_u64(seed))?;
        for step in 1..=STEPS {
            let done = churn.step().with_context(|| format!("step {step}"))?;
            let resting = churn.clients.pause();
            let checked = churn.clients.check()?;
            drop(resting);
            println!("step {step}: {done}; {checked} operations are linearizable");
        }
        println!("{:?}", churn.clients.reasons());
        Ok(())
    })();
    cluster.explain(played)
}
