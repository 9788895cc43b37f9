from __future__ import annotations

from miles_lite.stack.environment import KEEP_DEVICES_VISIBLE, actor_env

DRIVER = {"PYTHONPATH": "/mine", "NCCL_DEBUG": "INFO", "HOME": "/root", "MY_TOOL": "1", "MY_FLAGS_A": "2"}


def test_listed_variables_travel_and_others_stay():
    assert actor_env(driver=DRIVER) == {"PYTHONPATH": "/mine", "NCCL_DEBUG": "INFO"}


def test_the_admin_key_stays_home():
    driver = DRIVER | {"MILES_LITE_ADMIN_KEY": "secret", "MILES_LITE_PROPAGATE_ENV": "MILES_LITE_ADMIN_KEY,MILES_*"}
    assert "secret" not in actor_env(driver=driver).values()


def test_the_list_can_be_extended_by_name_and_by_prefix():
    asked = {"MILES_LITE_PROPAGATE_ENV": "MY_TOOL, MY_FLAGS_*"}
    carried = actor_env(driver=DRIVER | asked)
    assert carried == {"PYTHONPATH": "/mine", "NCCL_DEBUG": "INFO", "MY_TOOL": "1", "MY_FLAGS_A": "2"} | asked


def test_what_the_caller_set_wins():
    assert actor_env({"PYTHONPATH": "/callers"}, driver=DRIVER)["PYTHONPATH"] == "/callers"
    assert actor_env({"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": ""}, gpu=True, driver={}) == {
        **KEEP_DEVICES_VISIBLE,
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "",
    }
