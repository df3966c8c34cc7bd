//! Several contenders for one Lease in the fake API server, or in that of `TIDEGATE_TEST_KUBECONFIG`.

use std::collections::BTreeMap;
use tidegate_kubernetes::election::{Elected, Election};
use tidegate_kubernetes::lease::ElectionParams;
use tidegate_kubernetes::plan::SharedPlan;
use tidegate_types::Role;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::within;
use crate::cluster::Cluster;

struct Contender {
    plans: watch::Sender<Option<SharedPlan>>,
    elected: watch::Receiver<Elected>,
    task: JoinHandle<()>,
}

impl Contender {
    fn start(cluster: &Cluster, identity: &str) -> Contender {
        let (plans, wanted) = watch::channel(None);
        let (shown, elected) = watch::channel(Elected::default());
        let params = ElectionParams::default();
        let election =
            Election::new(cluster.access().clone(), "tidegate", identity.to_owned(), params);
        let task = tokio::spawn(election.run(wanted, shown));
        Contender { plans, elected, task }
    }

    fn epoch(&self) -> Option<u64> {
        self.elected.borrow().epoch
    }

    async fn shows(&mut self, what: impl FnMut(&Elected) -> bool) -> Elected {
        within(self.elected.wait_for(what)).await.unwrap().clone()
    }
}

fn plan(seq: u64) -> SharedPlan {
    SharedPlan { epoch: 0, seq, roles: BTreeMap::from([("a".to_owned(), Role::Prefill)]) }
}

/// Waits for a leader, and removes it from the list.
async fn leader(all: &mut Vec<Contender>) -> Contender {
    let searching = async {
        loop {
            if let Some(found) = all.iter().position(|one| one.epoch().is_some()) {
                return all.remove(found);
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within(searching).await
}

#[tokio::test]
async fn one_contender_leads_and_its_plan_is_published_to_all() {
    let cluster = Cluster::start("lease").await;
    let mut all: Vec<Contender> =
        ["a", "b", "c"].map(|name| Contender::start(&cluster, name)).into();
    let mut leader = leader(&mut all).await;
    assert_eq!(leader.epoch(), Some(1));
    leader.plans.send_replace(Some(plan(1)));
    let written = Some(SharedPlan { epoch: 1, ..plan(1) });
    leader.shows(|shown| shown.plan == written).await;
    for one in &mut all {
        one.shows(|shown| shown.plan == written).await;
        one.plans.send_replace(Some(plan(9)));
        assert_eq!(one.epoch(), None);
    }
    leader.plans.send_replace(Some(plan(2)));
    let next = Some(SharedPlan { epoch: 1, ..plan(2) });
    for one in &mut all {
        one.shows(|shown| shown.plan == next).await;
    }
}

#[tokio::test]
async fn a_killed_leader_is_replaced_and_the_new_epoch_is_higher() {
    let cluster = Cluster::start("killed").await;
    let mut all: Vec<Contender> = ["a", "b"].map(|name| Contender::start(&cluster, name)).into();
    let first = leader(&mut all).await;
    first.plans.send_replace(Some(plan(5)));
    let kept = Some(SharedPlan { epoch: 1, ..plan(5) });
    all[0].shows(|shown| shown.plan == kept).await;
    first.task.abort();
    let mut second = leader(&mut all).await;
    assert_eq!(second.epoch(), Some(2));
    assert_eq!(second.elected.borrow().plan, kept, "the last plan stays in force");
    second.plans.send_replace(Some(plan(1)));
    let own = Some(SharedPlan { epoch: 2, ..plan(1) });
    second.shows(|shown| shown.plan == own).await;
}

#[tokio::test]
async fn a_leader_that_ends_releases_the_lease() {
    let cluster = Cluster::start("release").await;
    let mut all: Vec<Contender> = ["a", "b"].map(|name| Contender::start(&cluster, name)).into();
    let Contender { plans, elected, task } = leader(&mut all).await;
    drop((plans, elected));
    within(task).await.unwrap();
    let second = leader(&mut all).await;
    assert_eq!(second.epoch(), Some(2));
}

#[tokio::test]
async fn without_the_api_server_there_is_no_leader_and_the_plan_stays() {
    let mut cluster = Cluster::fake().await;
    let mut all = vec![Contender::start(&cluster, "a")];
    let mut only = leader(&mut all).await;
    only.plans.send_replace(Some(plan(1)));
    only.shows(|shown| shown.plan.is_some()).await;
    cluster.fake.as_mut().unwrap().stop();
    let away = only.shows(|shown| shown.epoch.is_none()).await;
    assert_eq!(away.plan.map(|plan| plan.seq), Some(1));
    cluster.fake.as_mut().unwrap().listen().await;
    let back = only.shows(|shown| shown.epoch.is_some()).await;
    assert_eq!((back.epoch, back.plan.map(|plan| plan.seq)), (Some(1), Some(1)));
}
