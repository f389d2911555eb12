from tests.provisioning.agent.conftest import eventually, processes_of


def test_a_command_runs_and_its_exit_code_and_log_arrive(plane, start_agent):
    start_agent()
    plane.want("asg_a", "prepared", command=["sh", "-c", "echo hello; exit 7"])
    eventually(lambda: plane.view("asg_a")["state"] == "prepared")
    plane.want("asg_a", "running")
    eventually(lambda: plane.view("asg_a")["state"] == "exited")
    assert plane.view("asg_a")["exit_code"] == 7
    eventually(lambda: plane.log("asg_a") == "hello\n")
    plane.want("asg_a", "gone")
    eventually(lambda: plane.view("asg_a")["state"] == "gone")
