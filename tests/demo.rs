//! The demo's shop without the agent: it answers as it should, and leaves nothing behind. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the helpers of tests are tests too")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use fntrace::demo::{DemoArgs, Launcher, Load, Shop, Tracing, demo_with, serve_function};
use tokio::runtime;

/// Tells the processes that a test starts where to make their sandboxes.
const SCRATCH: &str = "FNTRACE_TEST_CGROUP";

/// A cgroup of the test's own, given to the demo as the mount point. Only an empty cgroup can be removed, so that
/// [`Scratch::remove`] proves that the demo has left neither a process nor a directory.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let path = words.next()?;
            (words.next()? == "cgroup2").then_some(path)
        });
        let mount = mount.expect("this test needs cgroup v2 mounted");
        let path = Path::new(mount).join(format!("fntrace-test-{}-{test}", std::process::id()));
        fs::create_dir(&path).expect("this test needs root: it makes cgroups");
        Self(path)
    }

    fn remove(self) {
        fs::remove_dir(&self.0).unwrap_or_else(|error| panic!("the demo left something in {:?}: {error}", self.0));
    }
}

/// This test binary started again, as one of the two "tests" below that are none.
fn launcher() -> Launcher {
    let words = ["/proc/self/exe", "--exact", "as_a_function", "--ignored", "--nocapture", "--skip"];
    Launcher(words.map(Into::into).to_vec())
}

#[test]
#[ignore = "no test: what the shop's functions are started as"]
fn as_a_function() {
    let name = env::var("FUNCTION_NAME").expect("started by the shop");
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve_function(&name)).unwrap();
    end()
}

#[test]
#[ignore = "no test: a demo without an agent, for others to end"]
fn as_a_demo() {
    let mount = PathBuf::from(env::var_os(SCRATCH).expect("started by a test"));
    let traced = block_on(demo_with(&DemoArgs::default(), &mount, launcher(), async |tracing: Tracing| {
        tracing.ready.send(()).unwrap();
        println!("\nslice {}", tracing.slice.display());
        let _ = tracing.stop.await;
        Ok("traced")
    }));
    assert_eq!(traced.unwrap(), "traced");
    end()
}

/// Ends a process that was no test before the harness reports: nobody reads that any more.
fn end() -> ! {
    std::process::exit(0)
}

fn block_on<F: Future>(future: F) -> F::Output {
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

fn sandboxes(slice: &Path) -> Vec<String> {
    let entries = fs::read_dir(slice).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn pids(slice: &Path) -> Vec<u32> {
    let of = |sandbox: String| fs::read_to_string(slice.join(sandbox).join("cgroup.procs")).unwrap();
    sandboxes(slice)
        .into_iter()
        .flat_map(|name| of(name).lines().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

fn is_running(pid: u32) -> bool {
    // A zombie that its parent has not yet reaped does not run.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_shop_answers_and_is_gone_afterwards() {
    let scratch = Scratch::new("answers");
    block_on(async {
        let shop = Shop::start_with(&scratch.0, launcher()).await.unwrap();
        let slice = shop.slice().to_owned();
        let always = ["checkout-1", "inventory-1", "notify-1", "payment-1", "pricing-1", "recommend-1"];
        assert_eq!(sandboxes(&slice), always, "mailer is started on demand");
        let before = pids(&slice);
        assert_eq!(before.len(), 6, "one process in each sandbox");

        let first = Instant::now();
        let answer = shop.order(1).await.unwrap();
        let cold = first.elapsed();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["notified"], true, "{answer:?}");
        assert_eq!(answer.body["cents"], 2 * 1999, "{answer:?}");
        assert!(sandboxes(&slice).contains(&"mailer-1".to_owned()));
        assert!(cold > Duration::from_millis(120), "the first order waits for mailer's start, it took {cold:?}");

        for n in 2..=3 {
            assert_eq!(shop.order(n).await.unwrap().status, 200);
        }
        let busy = shop.order(4).await.unwrap();
        assert_eq!(busy.status, 502);
        assert_eq!(busy.body["error"], "payment answered 502");
        assert_eq!(shop.order(5).await.unwrap().status, 200);
        let nobody = shop.order(9).await.unwrap();
        assert_eq!((nobody.status.as_u16(), &nobody.body["error"]), (502, &busy.body["error"]));

        let after = pids(&slice);
        assert!(before.iter().all(|pid| after.contains(pid)), "no function was lost on the way");
        shop.stop().unwrap();
        assert!(!slice.exists());
        for pid in after {
            assert!(!is_running(pid), "{pid} is left");
        }
    });
    scratch.remove();
}

#[test]
fn mailer_is_replaced_without_a_failed_order() {
    let scratch = Scratch::new("replaced");
    block_on(async {
        let shop = Shop::start_with(&scratch.0, launcher()).await.unwrap();
        let load = shop.load(Some(40), None).await.unwrap();
        // 4, 14, 24, 34 and 9, 19, 29, 39; so 32 mails, by three sandboxes of 15 each.
        assert_eq!(load, Load { taken: 32, refused: 8 });
        let names = sandboxes(shop.slice());
        assert!(names.contains(&"mailer-3".to_owned()) && !names.contains(&"mailer-1".to_owned()), "{names:?}");
    });
    scratch.remove();
}

#[test]
fn a_panic_takes_the_shop_away_too() {
    let scratch = Scratch::new("panic");
    let slice = Mutex::new(PathBuf::new());
    let panicked = std::panic::catch_unwind(|| {
        block_on(async {
            let shop = Shop::start_with(&scratch.0, launcher()).await.unwrap();
            *slice.lock().unwrap() = shop.slice().to_owned();
            panic!("on purpose");
        });
    });
    assert!(panicked.is_err());
    let slice = slice.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert_ne!(slice, PathBuf::new());
    assert!(!slice.exists());
    scratch.remove();
}

#[test]
fn a_running_demo_is_left_alone() {
    let scratch = Scratch::new("alone");
    block_on(async {
        let one = Shop::start_with(&scratch.0, launcher()).await.unwrap();
        let two = Shop::start_with(&scratch.0, launcher()).await.unwrap();
        assert_ne!(one.slice(), two.slice());
        assert_eq!(one.order(1).await.unwrap().status, 200);
        drop(two);
        assert_eq!(one.order(2).await.unwrap().status, 200);
    });
    scratch.remove();
}

#[test]
fn kill_9_leaves_no_process_and_the_next_start_removes_the_rest() {
    let scratch = Scratch::new("kill-9");
    let (mut demo, slice) = start_demo(&scratch);
    eventually("mailer is started too", || pids(&slice).len() == 7);
    let functions = pids(&slice);
    demo.kill().unwrap();
    demo.wait().unwrap();
    eventually("the functions end with their demo", || !functions.iter().any(|pid| is_running(*pid)));
    assert!(slice.exists(), "nobody was left to remove it");
    block_on(async {
        let shop = Shop::start_with(&scratch.0, launcher()).await.unwrap();
        assert!(!slice.exists(), "the next demo removes {}", slice.display());
        shop.stop().unwrap();
    });
    scratch.remove();
}

fn start_demo(scratch: &Scratch) -> (Child, PathBuf) {
    let mut demo = Command::new("/proc/self/exe")
        .args(["--exact", "as_a_demo", "--ignored", "--nocapture"])
        .env(SCRATCH, &scratch.0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let slice = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("slice ").map(PathBuf::from));
    (demo, slice.expect("the demo says where its slice is"))
}

#[test]
fn signals_end_the_demo_in_good_order() {
    for signal in ["INT", "TERM", "HUP"] {
        let scratch = Scratch::new(signal);
        let (mut demo, slice) = start_demo(&scratch);
        eventually("a cold start is under way or over", || pids(&slice).len() == 7);
        let sent = Command::new("kill").args([&format!("-{signal}"), &demo.id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert!(demo.wait().unwrap().success(), "SIG{signal}");
        scratch.remove();
    }
}

#[test]
fn the_demo_ends_with_its_last_request() {
    let scratch = Scratch::new("requests");
    let args = DemoArgs { requests: Some(3), rate: Some(1000.0), containers: false };
    let traced = block_on(demo_with(&args, &scratch.0, launcher(), async |tracing: Tracing| {
        assert!(tracing.slice.join("checkout-1").exists());
        tracing.ready.send(()).unwrap();
        let _ = tracing.stop.await;
        assert!(tracing.slice.join("mailer-1").exists(), "the agent ends before the shop does");
        Ok(3)
    }));
    assert_eq!(traced.unwrap(), 3);
    scratch.remove();
}

#[test]
fn the_demo_ends_with_its_agent() {
    let scratch = Scratch::new("agent");
    let args = DemoArgs::default();
    let failed = block_on(demo_with(&args, &scratch.0, launcher(), async |tracing: Tracing| -> anyhow::Result<()> {
        drop(tracing.ready);
        tokio::time::sleep(Duration::from_millis(10)).await;
        anyhow::bail!("this host has no BTF")
    }));
    assert_eq!(failed.unwrap_err().to_string(), "this host has no BTF");
    let ended = block_on(demo_with(&args, &scratch.0, launcher(), async |tracing: Tracing| {
        tracing.ready.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(())
    }));
    ended.unwrap();
    scratch.remove();
}

#[test]
fn without_a_place_for_sandboxes_the_demo_says_what_it_needs() {
    let error = block_on(Shop::start_with(Path::new("/proc"), launcher())).unwrap_err();
    assert!(format!("{error:#}").contains("needs root and cgroup v2"), "{error:#}");
}

#[test]
fn a_function_that_does_not_start_takes_the_shop_away() {
    let scratch = Scratch::new("false");
    let error = block_on(Shop::start_with(&scratch.0, Launcher(vec!["/bin/false".into()]))).unwrap_err();
    assert_eq!(format!("{error:#}"), "start inventory-1: it ended before it was ready");
    scratch.remove();
}
